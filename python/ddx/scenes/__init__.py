"""`scenes`: generated pictures of one to three objects, their captions, and an exact judge of both."""
