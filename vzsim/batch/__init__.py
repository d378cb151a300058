"""Jobs over several VMs of one node: their world, their fault sites, their verdict."""
