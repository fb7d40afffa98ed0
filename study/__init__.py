"""Does DaGRPO beat its baselines, and why? The research of this project: experiments, their results, and findings."""
