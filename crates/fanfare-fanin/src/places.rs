use fanfare_protocol::Manifest;

/// Finds the place of a key in a manifest. It holds no keys of its own, since there may be many.
#[derive(Debug)]
pub(crate) struct Places {
    /// All places, in the order of their keys.
    by_key: Vec<u32>,
}

impl Places {
    pub(crate) fn of(manifest: &Manifest) -> Self {
        let count = u32::try_from(manifest.targets.len()).expect("a message holds fewer targets");
        let mut by_key: Vec<u32> = (0..count).collect();
        by_key.sort_by_key(|place| key_at(manifest, *place));
        Self { by_key }
    }

    /// `manifest` is the one that this was made of.
    pub(crate) fn find(&self, manifest: &Manifest, key: &str) -> Option<usize> {
        let found = self.by_key.binary_search_by_key(&key, |place| key_at(manifest, *place)).ok()?;
        Some(self.by_key[found] as usize)
    }
}

fn key_at(manifest: &Manifest, place: u32) -> &str {
    manifest.targets[place as usize].key.as_str()
}
