"""Modules, before and after they are linked: where they are found, what they define, who constructs them."""
