"""The search for the cheapest plan: solver, closed loop, records of decisions."""
