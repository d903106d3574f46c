//! Keeps track of lists: which objects were seen in the current one, and which resources were listed at all.

use super::change::Resource;

/// Number of the list in which an object was last seen.
pub(super) type Epoch = u32;

/// The state of each resource's list.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    lists: [List; 4],
    complete: bool,
}

#[derive(Clone, Copy, Debug)]
struct List {
    epoch: Epoch,
    /// Must have been listed before anything is written.
    required: bool,
    listed: bool,
}

impl Ledger {
    pub(super) fn new(required: &[Resource]) -> Self {
        let list =
            |resource| List { epoch: 0, required: required.contains(&resource), listed: false };
        let lists =
            [Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::ServiceCidr]
                .map(list);
        Ledger { lists, complete: required.is_empty() }
    }

    /// The number that objects seen now are marked with.
    pub(super) fn epoch(&self, resource: Resource) -> Epoch {
        let [service, slice, node, cidr] = &self.lists;
        match resource {
            Resource::Service => service.epoch,
            Resource::EndpointSlice => slice.epoch,
            Resource::Node => node.epoch,
            Resource::ServiceCidr => cidr.epoch,
        }
    }

    /// A list begins, perhaps in place of one that broke off: what it delivered must come again.
    pub(super) fn begin(&mut self, resource: Resource) {
        let list = self.list(resource);
        list.epoch = list.epoch.wrapping_add(1);
    }

    /// A list ends. Returns whether this was the last one that was required for the first time.
    pub(super) fn end(&mut self, resource: Resource) -> bool {
        self.list(resource).listed = true;
        let complete = self.lists.iter().all(|it| it.listed || !it.required);
        complete && !std::mem::replace(&mut self.complete, complete)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// What has to be listed and was not yet.
    pub(super) fn missing(&self) -> impl Iterator<Item = Resource> {
        let resources =
            [Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::ServiceCidr];
        let lists = resources.into_iter().zip(&self.lists);
        lists.filter(|(_, list)| list.required && !list.listed).map(|(resource, _)| resource)
    }

    fn list(&mut self, resource: Resource) -> &mut List {
        let [service, slice, node, cidr] = &mut self.lists;
        match resource {
            Resource::Service => service,
            Resource::EndpointSlice => slice,
            Resource::Node => node,
            Resource::ServiceCidr => cidr,
        }
    }
}
