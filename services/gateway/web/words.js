// The words of the sticker world, and prompts to try. A test compares the words with those of the library.

export const EXAMPLES = [
  "a flamingo on the beach",
  "a snail in the meadow",
  "a red car on the beach",
  "a rocket in the desert",
  "an owl in the forest, neon style",
  "a sapphire balloon in the snow",
];

/** Topics: the cloud knows them, the edge does not until it is taught. Each with the words that need it. */
const TOPIC_WORDS = {
  neon: ["neon"], "pixel-art": ["pixel art"], watercolour: ["watercolour"], thermal: ["thermal"],
  vaporwave: ["vaporwave"], rocket: ["rocket"], ufo: ["ufo"], snail: ["snail"], flamingo: ["flamingo"],
  jewels: ["ruby", "amber", "topaz", "emerald", "sapphire", "amethyst", "rose quartz"],
  crown: ["crown"], "top-hat": ["top hat"],
};

/** Words by the part of a prompt that they fill, in the order of a prompt. */
export const WORDS = {
  colour: ["red", "orange", "yellow", "green", "blue", "purple", "pink"],
  subject: [
    "snail", "rocket", "ufo", "flamingo", "cat", "dog", "fox", "bear", "panda", "lion", "pig", "rabbit", "frog", "penguin",
    "owl", "duck", "elephant", "turtle", "butterfly", "crab", "octopus", "fish", "whale", "dinosaur", "apple",
    "strawberry", "watermelon", "donut", "pumpkin", "car", "bus", "sailboat", "tree", "cactus", "sunflower", "tulip",
    "mushroom", "house", "tent", "balloon", "gift", "robot", "umbrella", "snowman",
  ],
  place: [
    "in the meadow", "on the beach", "in the snow", "in the desert", "in the forest", "in the city", "on the sea",
    "underwater", "in a room", "on the moon",
  ],
  time: ["by day", "at sunset", "at night"],
  style: [
    "sticker", "comic", "pastel", "pencil", "sepia", "watercolour", "neon", "pixel art", "thermal", "vaporwave",
  ],
};

/** The words of a prompt, each between spaces. */
const spaced = (prompt) => ` ${prompt.toLowerCase().replaceAll(/[^a-z0-9]+/g, " ")} `;

/** The words of each part that `prompt` has. */
export function partsOf(prompt) {
  const text = spaced(prompt);
  const parts = {};
  for (const [part, words] of Object.entries(WORDS))
    parts[part] = words.find((word) => text.includes(` ${word} `)) ?? null;
  return parts;
}

/** The prompt with these words. */
export function promptOf({ colour, subject, place, time, style }) {
  const thing = [colour, subject ?? "cat"].filter(Boolean).join(" ");
  const article = /^([aeio]|umbrella)/.test(thing) ? "an" : "a"; // a ufo
  const scene = [`${article} ${thing}`, place, time].filter(Boolean).join(" ");
  return style ? `${scene}, ${style} style` : scene;
}

/** The topics that `prompt` needs. */
export function topicsOf(prompt) {
  const text = spaced(prompt);
  return Object.keys(TOPIC_WORDS).filter((topic) => TOPIC_WORDS[topic].some((word) => text.includes(` ${word} `)));
}
