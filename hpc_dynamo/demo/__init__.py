"""`make demo`: a batch of real prompts through one prefill and one decode worker."""
