/// The keyboard controller at ports 0x60 (data) and 0x64 (status, command), with no keyboard and no mouse plugged in.
///
/// IBM PC/AT Technical Reference, "Keyboard Controller"; Intel 8042 data sheet for the port model. It is here for what
/// guests do to it anyway: reset the machine, switch A20, test for it and find nothing behind it. Commands complete at
/// once, so the input buffer is never full.
///
/// - A byte for the absent keyboard or mouse is answered as the controller does when a device doesn't: 0xfe with the
///   time-out bit set, and IRQ 1 if enabled.
/// - The mouse port is absent: its test (0xa9) reports a fault, its loop-back (0xd3) answers on the keyboard's side.
/// - The A20 bit is kept and read back; see `SystemPorts` on A20.
public struct I8042: BytePortDevice {
    private enum Register {
        static let data: UInt16 = 0
        static let statusCommand: UInt16 = 4
    }

    private enum Status {
        static let outputFull: UInt8 = 0b0000_0001
        static let lastWasCommand: UInt8 = 0b0000_1000
        static let unlocked: UInt8 = 0b0001_0000
        static let timeout: UInt8 = 0b0100_0000
    }

    private enum Command {
        static let readRAM: ClosedRange<UInt8> = 0x20...0x3f
        static let writeRAM: ClosedRange<UInt8> = 0x60...0x7f
        static let disableMouse: UInt8 = 0xa7
        static let enableMouse: UInt8 = 0xa8
        static let testMouse: UInt8 = 0xa9
        static let selfTest: UInt8 = 0xaa
        static let testKeyboard: UInt8 = 0xab
        static let disableKeyboard: UInt8 = 0xad
        static let enableKeyboard: UInt8 = 0xae
        static let readInputPort: UInt8 = 0xc0
        static let readOutputPort: UInt8 = 0xd0
        static let writeOutputPort: UInt8 = 0xd1
        static let writeKeyboardOutput: UInt8 = 0xd2
        static let writeMouseOutput: UInt8 = 0xd3
        static let writeMouse: UInt8 = 0xd4
        static let disableA20: UInt8 = 0xdd
        static let enableA20: UInt8 = 0xdf
        static let pulseOutput: ClosedRange<UInt8> = 0xf0...0xff
    }

    /// Bits of the command byte, address 0 of the controller's RAM.
    private enum CommandByte {
        static let keyboardInterrupt: UInt8 = 0b0000_0001
        static let system: UInt8 = 0b0000_0100
        static let keyboardDisabled: UInt8 = 0b0001_0000
        static let mouseDisabled: UInt8 = 0b0010_0000
        static let translate: UInt8 = 0b0100_0000
        /// As firmware leaves it.
        static let initial = keyboardInterrupt | system | mouseDisabled | translate
    }

    private enum OutputPort {
        static let notReset: UInt8 = 0b0000_0001
        static let a20: UInt8 = 0b0000_0010
        static let outputFull: UInt8 = 0b0001_0000
        static let initial: UInt8 = 0b1100_1111
    }

    private enum Answer {
        static let selfTestPassed: UInt8 = 0x55
        static let testPassed: UInt8 = 0x00
        static let clockLineStuck: UInt8 = 0x01
        static let resend: UInt8 = 0xfe
        static let keyboardUnlocked: UInt8 = 0x80
    }

    private var commandByte = CommandByte.initial
    private var outputPort = OutputPort.initial
    private var outputBuffer: UInt8 = 0
    private var isOutputFull = false
    private var isTimeout = false
    private var lastWasCommand = false
    /// The command that the next byte written to the data port belongs to.
    private var awaitingData: UInt8?
    private var request: PowerRequest?

    public init() {}

    /// The level of IRQ 1.
    public var irq: Bool { isOutputFull && commandByte & CommandByte.keyboardInterrupt != 0 }

    /// The A20 gate as the guest last set it here.
    public var isA20Enabled: Bool { outputPort & OutputPort.a20 != 0 }

    public mutating func takeRequest() -> PowerRequest? {
        defer { request = nil }
        return request
    }

    public mutating func readByte(_ offset: UInt16, at now: Nanoseconds) -> UInt8 {
        switch offset {
        case Register.data:
            isOutputFull = false
            isTimeout = false
            return outputBuffer
        case Register.statusCommand: return status
        default: return 0xff
        }
    }

    public mutating func writeByte(_ offset: UInt16, _ value: UInt8, at now: Nanoseconds) {
        switch offset {
        case Register.data:
            lastWasCommand = false
            writeData(value)
        case Register.statusCommand:
            lastWasCommand = true
            awaitingData = nil
            run(value)
        default: break
        }
    }

    private var status: UInt8 {
        Status.unlocked | (isOutputFull ? Status.outputFull : 0) | commandByte & CommandByte.system
            | (lastWasCommand ? Status.lastWasCommand : 0) | (isTimeout ? Status.timeout : 0)
    }

    private mutating func run(_ command: UInt8) {
        switch command {
        case Command.readRAM.lowerBound: answer(commandByte)
        case Command.readRAM: answer(0)
        case Command.writeRAM, Command.writeOutputPort, Command.writeKeyboardOutput, Command.writeMouseOutput,
            Command.writeMouse:
            awaitingData = command
        case Command.disableMouse: commandByte |= CommandByte.mouseDisabled
        case Command.enableMouse: commandByte &= ~CommandByte.mouseDisabled
        case Command.testMouse: answer(Answer.clockLineStuck)
        case Command.selfTest:
            commandByte |= CommandByte.system
            answer(Answer.selfTestPassed)
        case Command.testKeyboard: answer(Answer.testPassed)
        case Command.disableKeyboard: commandByte |= CommandByte.keyboardDisabled
        case Command.enableKeyboard: commandByte &= ~CommandByte.keyboardDisabled
        case Command.readInputPort: answer(Answer.keyboardUnlocked)
        case Command.readOutputPort: answer(outputPort | (isOutputFull ? OutputPort.outputFull : 0))
        case Command.disableA20: outputPort &= ~OutputPort.a20
        case Command.enableA20: outputPort |= OutputPort.a20
        case Command.pulseOutput where command & OutputPort.notReset == 0: request = .reset
        default: break
        }
    }

    private mutating func writeData(_ value: UInt8) {
        defer { awaitingData = nil }
        switch awaitingData {
        case Command.writeRAM.lowerBound?: commandByte = value
        case Command.writeOutputPort?:
            if value & OutputPort.notReset == 0 { request = .reset }
            outputPort = value & ~OutputPort.outputFull
        case Command.writeKeyboardOutput?, Command.writeMouseOutput?: answer(value)
        case nil, Command.writeMouse?:
            answer(Answer.resend)
            isTimeout = true
        default: break
        }
    }

    private mutating func answer(_ byte: UInt8) {
        outputBuffer = byte
        isOutputFull = true
        isTimeout = false
    }
}
