"""Pages and pictures from run directories."""
