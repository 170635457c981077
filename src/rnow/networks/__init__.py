"""What holds for a network whoever runs it: its layers, experts, positions; without torch."""
