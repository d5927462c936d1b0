"""x ~ policy in a world: one turn, many turns, and packing into a Batch."""
