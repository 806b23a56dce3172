"""Visual ChangeNet: is this part like its golden reference (classify), which pixels changed (segment)."""
