/** What an app does with PrivDFS; `App.tsx` is the screen around it. */

import * as ort from "onnxruntime-react-native";
import { Bundle, Client, type Pixels, type Result, type Server, type Source } from "privdfs";

/** Where the bundle is, who signed it, and one server for each share, each of another party. */
export interface Settings {
  readonly source: Source;
  readonly trust: string;
  readonly servers: readonly (Server | string)[];
}

/** Verify the bundle and make a client; once, for all pictures. */
export async function openClient({ source, trust, servers }: Settings): Promise<Client> {
  const bundle = await Bundle.open(source, { runtime: ort, trust });
  return new Client(bundle, servers, { timeout: 5000, minAnswers: Math.floor(servers.length / 2) + 1, wait: "quorum" });
}

export const classify = (client: Client, pixels: Pixels): Promise<Result> => client.predict(pixels);
