"""Files and applications in, training rows out."""
