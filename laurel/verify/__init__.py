"""The functions that train, held against exact truths: `laurel verify`."""
