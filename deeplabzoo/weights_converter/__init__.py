"""Moving weights between frameworks and layouts: `formats` turn bytes into named arrays, `layouts` names into meaning.

Nothing in a file is executed, and no framework is imported.
"""
