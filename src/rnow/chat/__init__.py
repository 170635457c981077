"""Prompts, messages, ids, transcripts: one model's words."""
