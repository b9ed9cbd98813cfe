"""What connects other packages to the store. Each needs that package installed."""
