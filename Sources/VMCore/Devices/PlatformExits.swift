/// Something that came to the devices from outside the guest, in the order in which they were given it.
///
/// With the guest's own accesses these are all that a platform's state depends on. A recording keeps them, so that the
/// devices can be run again beside a replay and stand, at any exit, as they stood in the recording.
public enum DeviceInput: Equatable, Sendable {
    /// Machine time, for the accesses that follow.
    case time(Nanoseconds)
    /// Machine time, up to which everything that was due has happened.
    case advance(Nanoseconds)
    /// Bytes that came in on the first serial line.
    case serial([UInt8])
}

extension Platform {
    /// Gives the devices what came from outside.
    public mutating func receive(_ input: DeviceInput) {
        switch input {
        case .time(let moment): time = max(time, moment)
        case .advance(let moment):
            time = max(time, moment)
            advance(to: time)
        case .serial(let bytes):
            for byte in bytes { _ = receiveSerial(byte, at: time) }
        }
    }

    /// Moves the vector that the processor takes now into service; nil if none is deliverable at its task priority.
    public mutating func acknowledgeInterrupt(taskPriority: UInt8) -> UInt8? {
        isHalted = false
        interrupts.tpr = taskPriority << 4
        return interrupts.acknowledge(tpr: taskPriority << 4, at: time)
    }

    /// True where an NMI waited, which the processor takes now.
    public mutating func acknowledgeNMI() -> Bool {
        isHalted = false
        return interrupts.takeNMI()
    }

    /// Whether what an access does depends on the time at which it is made, so that devices have to be given it.
    ///
    /// All others work with the last time that the devices were given: they don't look at it.
    @inline(__always)
    public static func dependsOnTime(_ identity: EventIdentity) -> Bool {
        switch identity.kind {
        case .portRead, .portWrite:
            switch identity.address {
            case 0x80: false
            case 0x40...0x43, 0x61, 0x70, 0x71: true  // 8254, port B, MC146818
            case 0x3F8...0x3FA: true  // 16550A: data, interrupt enable and identification
            case 0x600...0x60B: true  // ACPI: fixed events and timer
            default: isWideAccess(identity)
            }
        case .mmioRead, .mmioWrite:
            InterruptFabric.isTimerRegister(mmio: identity.address)
                || identity.address &- HPET.address.rawValue < HPET.size
        case .msrRead, .msrWrite: InterruptFabric.isTimerRegister(msr: identity.address)
        default: false
        }
    }

    /// A word or double word may reach into the registers above its port.
    @inline(__always)
    private static func isWideAccess(_ identity: EventIdentity) -> Bool {
        identity.size > 1 && (0x3D...0x70 ~= identity.address || 0x3F5...0x3F7 ~= identity.address
            || 0x5FD...0x5FF ~= identity.address)
    }

    /// Answers an exit, at the time that the devices were given last.
    ///
    /// - Parameter taskPriority: CR8, which the guest changes without an exit.
    /// - Returns: whether it may have changed when a device is due or what it asks for.
    @inline(__always)
    public mutating func handle(_ exit: inout Exit, taskPriority: UInt8) -> Bool {
        if interrupts.tpr >> 4 != taskPriority { interrupts.tpr = taskPriority << 4 }
        let identity = exit.identity
        let size = Int(identity.size)
        switch identity.kind {
        case .portRead:
            let port = UInt16(truncatingIfNeeded: identity.address)
            if exit.data != nil {
                exit.fillElements { UInt64(readPort(port, size: size, at: time)) }
            } else {
                exit.value = UInt64(readPort(port, size: size, at: time))
                if size < 4 { exit.value &= (1 << (8 * UInt64(size))) - 1 }
            }
            return false
        case .portWrite:
            let port = UInt16(truncatingIfNeeded: identity.address)
            if exit.data != nil {
                exit.forEachElement {
                    writePort(port, size: size, value: UInt32(truncatingIfNeeded: $0), at: time)
                }
            } else {
                writePort(port, size: size, value: UInt32(truncatingIfNeeded: exit.value), at: time)
            }
            return Self.mayChangeDeadline(port: port)
        case .mmioRead:
            exit.value = readMMIO(.init(identity.address), size: size, at: time)
            if size < 8 { exit.value &= (1 << (8 * UInt64(size))) - 1 }
            return false
        case .mmioWrite:
            writeMMIO(.init(identity.address), size: size, value: exit.value, at: time)
            return true
        case .msrRead:
            if let value = readMSR(UInt32(truncatingIfNeeded: identity.address), at: time) {
                exit.value = value
            } else {
                exit.identity.flags |= EventIdentity.faulted
            }
            return false
        case .msrWrite:
            if !writeMSR(UInt32(truncatingIfNeeded: identity.address), value: exit.value, at: time) {
                exit.identity.flags |= EventIdentity.faulted
            }
            return true
        case .halt:
            isHalted = true
            return false
        default:
            return false
        }
    }
}

extension Exit {
    /// Calls `body` with each element of a string port access, or with the one value.
    public func forEachElement(_ body: (UInt64) throws -> Void) rethrows {
        guard let data else { return try body(value) }
        let size = Int(identity.size)
        for start in stride(from: 0, to: data.count - size + 1, by: size) {
            var element: UInt64 = 0
            for i in (0..<size).reversed() { element = element << 8 | UInt64(data[start + i]) }
            try body(element)
        }
    }

    /// Fills each element of a string port access.
    func fillElements(_ next: () -> UInt64) {
        guard let data else { return }
        let size = Int(identity.size)
        for start in stride(from: 0, to: data.count - size + 1, by: size) {
            let element = next()
            for i in 0..<size { data[start + i] = UInt8(truncatingIfNeeded: element >> UInt64(8 * i)) }
        }
    }
}
