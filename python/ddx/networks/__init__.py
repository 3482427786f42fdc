"""What distillation methods add to a teacher's network."""
