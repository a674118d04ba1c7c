"""What knows diffusers by name. Needs the extra ``synccache[diffusers]``."""
