// Says what Python wrote of every word, see page.py.
for (const section of document.querySelectorAll(".section[data-about]")) {
  page.tips(section, (token) => {
    const about = document.createElement("small");
    about.textContent = section.dataset.about;
    return [token.dataset.tip, about];
  });
  page.walk(section.querySelector(".words"));
}
