"""Task ``segment``: which pixels changed between two images?"""
