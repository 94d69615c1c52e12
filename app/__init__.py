"""The faces: everything a person touches. No maths here."""
