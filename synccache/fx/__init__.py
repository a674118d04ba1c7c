"""Everything that touches torch: capture, residual program, regions, rewriting, running."""
