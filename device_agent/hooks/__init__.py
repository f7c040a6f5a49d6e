"""Deploy hooks: what is done with each certificate that comes into use."""
