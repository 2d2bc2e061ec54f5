"""`make demo`: a batch of prompts with one prefill and one decode worker on this machine."""
