/// Which engine runs a guest.
public enum EngineKind: String, CaseIterable, Sendable {
    /// `/dev/kvm`
    case kvm
    /// vmrr's own processor in software
    case soft

    /// Makes an engine for a machine's memory.
    ///
    /// `capabilities` are those of KVM on this host.
    public func make(system: KVMSystem, memory: GuestMemory, model: CPUModel, capabilities: EngineCapabilities,
                     trapsTimestamps: Bool) throws(HostError) -> any Engine {
        switch self {
        case .kvm:
            let engine = try KVMEngine(system: system, memory: memory, model: model, capabilities: capabilities)
            engine.trapsTimestamps = trapsTimestamps
            return engine
        case .soft:
            let engine = try SoftEngine(memory: memory, model: model)
            engine.trapsTimestamps = trapsTimestamps
            return engine
        }
    }
}
