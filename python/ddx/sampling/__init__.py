"""Drawing pictures: students as plain diffusers pipelines, teachers in batches, and the pages that show them."""
