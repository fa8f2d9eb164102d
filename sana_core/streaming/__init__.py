"""The stream: chunk plans, carried state, sampling chunk by chunk, frames in and frames out."""
