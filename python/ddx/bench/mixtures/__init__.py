"""Ground one of every method: teachers whose velocity is known in closed form, and the gate of a student of them."""
