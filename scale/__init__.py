"""DaGRPO on several GPUs: inside TRL's GRPOTrainer. Imports the modules at the root, and none of them imports this."""
