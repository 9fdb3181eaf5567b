"""Images that need no download: retinas, chest films and everyday objects, drawn from a seed.

A file a set, all on one `canvas`. They show that the code works and say nothing of medicine.
"""
