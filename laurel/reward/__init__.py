"""R(x): verifiers, users' own functions, mixtures. A failure is never a zero."""
