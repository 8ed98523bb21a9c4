// What is short on the page is copied whole: one listener for all, as the parts of the page come anew.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  const told = document.getElementById("told");
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    told.textContent = `copied ${button.dataset.copy}`;
  } catch {
    told.textContent = button.dataset.copy; // no clipboard over plain http of another host: then to be marked by hand
  }
  told.hidden = false;
  clearTimeout(told.timer);
  told.timer = setTimeout(() => { told.hidden = true; }, 6000);
});
