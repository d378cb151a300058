"""What a host is made of, simulated: time, files, machines, a node, archives on their way."""
