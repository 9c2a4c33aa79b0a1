const price = new Intl.NumberFormat("en", { style: "currency", currency: "EUR" });

function card(product) {
  const element = document.createElement("article");
  element.className = "card";
  const title = document.createElement("h2");
  title.textContent = product.name;
  const detail = document.createElement("p");
  detail.textContent = `${product.family}, ${product.lumens} lm, ${price.format(product.price_cents / 100)}`;
  element.append(title, detail);
  return element;
}

async function main() {
  const target = document.getElementById("app");
  const reply = await fetch("/api/products");
  if (!reply.ok) {
    target.textContent = "The catalogue is not available.";
    return;
  }
  const { items } = await reply.json();
  const grid = document.createElement("div");
  grid.className = "grid";
  grid.append(...items.map(card));
  target.replaceChildren(grid);
}

main();
