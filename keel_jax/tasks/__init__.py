"""Tasks by which a model is judged: their answers, and whether those are right."""
