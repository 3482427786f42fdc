"""What follows a run besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow, or one more file of lines."""
