"""What long runs over a table share: rows, a share of the work, workers, a folder.

Tables of explanations and studies are such runs.
"""
