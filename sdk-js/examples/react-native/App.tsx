import "react-native-get-random-values"; // before privdfs: coded releases draw from it
import { Skia } from "@shopify/react-native-skia";
import { fromUrl, type Pixels, PrivdfsError } from "privdfs";
import { useState } from "react";
import { Button, Image, Text, View } from "react-native";
import { launchImageLibrary } from "react-native-image-picker";
import { classify, openClient } from "./classify";

const client = openClient({
  source: fromUrl("https://app.example/bundle/"),
  trust: `-----BEGIN PUBLIC KEY-----
the text of release-key.pub.pem
-----END PUBLIC KEY-----
`,
  servers: ["https://a.example", "https://b.example", "https://c.example"],
});
client.catch(() => {}); // `choose` says why

export default function App() {
  const [uri, setUri] = useState<string>();
  const [answer, setAnswer] = useState("");

  async function choose() {
    const { assets } = await launchImageLibrary({ mediaType: "photo" });
    const chosen = assets?.[0]?.uri;
    if (!chosen) return;
    setUri(chosen);
    setAnswer("…");
    try {
      const { label, probability, answered } = await classify(await client, await decode(chosen));
      const count = answered.filter(Boolean).length;
      setAnswer(`${label}, ${Math.round(100 * probability)} % sure; ${count} of ${answered.length} servers answered`);
    } catch (error) {
      setAnswer(error instanceof PrivdfsError ? error.message : `Something unexpected: ${error}`);
    }
  }

  return (
    <View style={{ flex: 1, alignItems: "center", justifyContent: "center", gap: 16, padding: 16 }}>
      {uri ? (
        <Image
          source={{ uri }}
          style={{ width: 240, height: 240 }}
          resizeMode="contain"
          accessibilityLabel="The picture"
        />
      ) : null}
      <Button title="Choose a picture" onPress={choose} />
      <Text accessibilityLiveRegion="polite">{answer}</Text>
    </View>
  );
}

/** Pixels of a photograph at its full size: the SDK makes them smaller, as it does on every device. */
async function decode(uri: string): Promise<Pixels> {
  const image = Skia.Image.MakeImageFromEncoded(await Skia.Data.fromURI(uri));
  const data = image?.readPixels();
  if (!image || !(data instanceof Uint8Array)) throw new Error("this is no image that the phone reads");
  return { data, width: image.width(), height: image.height() };
}
