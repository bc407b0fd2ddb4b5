"""Who is mixed with whom, and how much: numbers only, no model and no labels."""
