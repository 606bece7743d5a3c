"""Deep prompts: learned tokens in the first blocks of open_clip's towers, and the folder that keeps them."""
