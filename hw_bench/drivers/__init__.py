"""The load: clients in processes of their own, on a core of their own, told over a pipe what to do."""
