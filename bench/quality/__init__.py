"""The whole chain at a small size: train on a small task, evaluate beside text, report."""
