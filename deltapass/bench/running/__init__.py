"""One suite on one model, stage by stage: checked, drawn, timed, concluded; resumable."""
