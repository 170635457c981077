"""vLLM servers, in processes of their own or somebody else's, spoken to over HTTP."""
