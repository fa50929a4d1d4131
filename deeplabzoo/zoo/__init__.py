"""Named models and their published weights."""
