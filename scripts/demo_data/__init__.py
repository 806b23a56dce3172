"""Pictures drawn by ``make_demo_data.py``: printed circuit boards and aerial scenes."""
