// Photographs that are too large are told beside their field and not sent; the others of the same drop are.
const tell = (field, names) => {
  document.getElementById(`${field.id}-large`)?.remove();
  if (!names.length) return;
  const told = Object.assign(document.createElement("p"), { id: `${field.id}-large`, className: "said" });
  told.textContent = `Left out: ${names.join(", ")}, larger than LIMIT MB.`;
  told.setAttribute("role", "status");
  field.insertAdjacentElement("afterend", told);
};

const sift = (event, files, input) => {
  const field = event.target.closest?.('[id$="-drop"]');
  if (!field || !files?.length) return;
  const large = [...files].filter((file) => file.size > LIMIT * 2 ** 20);
  if (!event.sifted) tell(field, large.map((file) => file.name));
  if (!large.length) return;
  event.stopImmediatePropagation();
  event.preventDefault();
  const kept = new DataTransfer();
  [...files].filter((file) => !large.includes(file)).forEach((file) => kept.items.add(file));
  input(field).files = kept.files;
  if (kept.files.length) {
    input(field).dispatchEvent(Object.assign(new Event("change", { bubbles: true }), { sifted: true }));
  }
};

document.addEventListener("change", (event) => {
  if (event.target.type === "file") sift(event, event.target.files, () => event.target);
}, true);
document.addEventListener("drop", (event) => {
  sift(event, event.dataTransfer?.files, (field) => field.querySelector("input[type=file]"));
}, true);
