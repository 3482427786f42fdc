"""GenEval and DPG-Bench: pictures in their folder layouts, and a judge behind an OpenAI-compatible endpoint."""
