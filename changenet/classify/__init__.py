"""Task ``classify``: does a part differ from its golden reference?"""
