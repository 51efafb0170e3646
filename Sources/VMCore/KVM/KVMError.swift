import CKVM

/// A system call or ioctl that failed.
public struct SystemCallError: Error, Equatable, CustomStringConvertible {
    /// The call's name, such as `KVM_SET_REGS` or `mmap`.
    public var call: String
    public var errno: Int32

    public init(_ call: String, errno: Int32 = ckvm_errno()) {
        self.call = call
        self.errno = errno
    }

    public var description: String { "\(call): \(String(cString: strerror(errno)))" }
}

/// What keeps this host from running a guest. The command line ends with status 69.
public enum HostError: Error, CustomStringConvertible {
    case noDevice
    case noPermission
    case busy
    case wrongVersion(Int32)
    case missing(capability: String)
    case missingFeatures([String], model: String)
    case call(SystemCallError)
    case failedEntry(reason: UInt64)
    case cannotEmulate(rip: UInt64, bytes: [UInt8])
    case internalError(suberror: UInt32, rip: UInt64)
    case unexpectedExit(reason: UInt32)
    case cannotLand(String)
    case softEngineLacks(rip: UInt64, bytes: [UInt8])
    case softEngineLacksBreakpoints
    case cannotRecordTimestamps
    /// The trace holds what only the soft engine can give back.
    case needsSoftEngine(String)

    /// Whether the soft engine came to something that it can't do, and another engine may.
    var isLackOfSoftEngine: Bool {
        switch self {
        case .softEngineLacks, .softEngineLacksBreakpoints: true
        default: false
        }
    }

    /// Whether KVM as a whole is missing, or out of reach.
    public var isLackOfKVM: Bool {
        switch self {
        case .noDevice, .noPermission, .busy, .wrongVersion, .missing: true
        default: false
        }
    }

    /// The first half of the description: what is wrong, without what to do about it.
    public var summary: String { String(description.prefix { $0 != ":" }) }

    private static func softCan(be model: String) -> Bool {
        (try? CPUModel(named: model, timestamps: .hide, supported: SoftEngine.supportedFeatures)) != nil
    }

    public var description: String {
        switch self {
        case .noDevice:
            "/dev/kvm does not exist: enable virtualization in the firmware set-up, load the module "
                + "(modprobe kvm_intel or kvm_amd), or pass --device=/dev/kvm to the container"
        case .noPermission:
            "no permission to open /dev/kvm: add yourself to its group (sudo usermod -aG kvm $USER, then log in again) "
                + "or run as root"
        case .busy:
            "/dev/kvm is busy: another hypervisor holds the processor's virtualization"
        case .wrongVersion(let version):
            "/dev/kvm speaks API version \(version); vmrr needs version 12"
        case .missing(let capability):
            "this kernel's KVM lacks \(capability); vmrr needs Linux 5.10 or newer"
        case .missingFeatures(let names, let model):
            "the CPU model \(model) needs what this host lacks: \(names.joined(separator: ", ")); "
                + "choose a smaller one with --cpu" + (Self.softCan(be: model) ? ", or take --engine soft" : "")
        case .call(let error):
            "KVM failed: \(error)"
        case .failedEntry(let reason):
            "the processor refused to enter the guest (hardware reason 0x\(String(reason, radix: 16)))"
        case .cannotEmulate(let rip, let bytes):
            "this host's KVM cannot emulate the guest's instruction at RIP 0x\(String(rip, radix: 16)): "
                + bytes.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined(separator: " ")
        case .internalError(let suberror, let rip):
            "KVM reported internal error \(suberror) at RIP 0x\(String(rip, radix: 16))"
        case .unexpectedExit(let reason):
            "KVM ended with exit reason \(reason), which vmrr does not know"
        case .cannotLand(let why):
            "this host can't replay that position: \(why)"
        case .softEngineLacks(let rip, let bytes):
            "the soft engine lacks the guest's instruction at RIP 0x\(String(rip, radix: 16)): "
                + bytes.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined(separator: " ")
        case .cannotRecordTimestamps:
            "--timestamps record needs --engine soft: stock KVM has no exit for RDTSC"
        case .needsSoftEngine(let what):
            "KVM can't replay \(what): use --engine soft"
        case .softEngineLacksBreakpoints:
            "the soft engine lacks breakpoints in the guest's own debug registers"
        }
    }
}
